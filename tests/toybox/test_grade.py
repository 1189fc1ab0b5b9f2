"""The grader: its classifier, training with resume, files, judgements, command line."""

import numpy as np
import pytest
import torch
from PIL import Image

from toybox import captions
from toybox.classifier import Classifier, allowed_views, augment, group_nll, shrink
from toybox.grade import Grade, Grader, View, find_views, prompt_of_run, read_pictures, score
from toybox.grade.commands import main
from toybox.grade.prior import draw_prompts, with_borders
from toybox.grade.scores import commitment
from toybox.grade.training import GraderData, train_grader
from toybox.training import Stopped

LABELS = {
    "object": ["donut", "house"],
    "color": ["blue", "red"],
    "view": list(captions.VIEWS),
    "decoration": ["", "dots", "bricks"],
}


def seen(name: str, color: str, view: str) -> Grade:
    tables = {"object": {name: 1.0}, "color": {color: 1.0}, "view": {view: 1.0}, "decoration": {"": 1.0}}
    return Grade(name, color, view, "", tables)


def test_group_nll_worked_by_hand():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    loss = group_nll(logits, torch.tensor([[True, False, True, False]]))
    torch.testing.assert_close(loss, -torch.log(torch.tensor([0.4])))
    assert group_nll(logits, torch.ones(1, 4, dtype=torch.bool)).abs() < 1e-6


def test_shrink_premultiplies_before_it_averages():
    rgba = torch.zeros(1, 128, 128, 4, dtype=torch.uint8)
    rgba[0, ::2, :, 0] = 200  # red in every second row, and only there opaque
    rgba[0, ::2, :, 3] = 255
    small = shrink(rgba)
    assert small.shape == (1, 4, 64, 64)
    assert (small[0, 0] == 100).all() and (small[0, 3] == 128).all() and (small[0, 1:3] == 0).all()


def test_augment_without_strength_is_compositing():
    x = torch.zeros(1, 4, 64, 64, dtype=torch.uint8)
    x[:, :, :32] = torch.tensor([51, 0, 0, 51], dtype=torch.uint8)[:, None, None]  # red, alpha 0.2
    image = augment(x, torch.tensor([[0.0, 1.0, 0.5]]), torch.Generator(), strength=0.0)
    torch.testing.assert_close(image[0, :, 0, 0], torch.tensor([0.2, 0.8, 0.4]))
    torch.testing.assert_close(image[0, :, 63, 0], torch.tensor([0.0, 1.0, 0.5]))


def test_augment_stays_a_picture_and_repeats_with_its_generator():
    x = torch.randint(0, 256, (4, 4, 64, 64), dtype=torch.uint8)
    x[:, :3] = torch.minimum(x[:, :3], x[:, 3:])
    a, b = (
        augment(x, torch.rand(4, 3, generator=g), g)
        for g in (torch.Generator().manual_seed(i) for i in (0, 0))
    )
    assert torch.equal(a, b) and a.shape == (4, 3, 64, 64) and a.min() >= 0 and a.max() <= 1


def test_views_that_look_alike_are_allowed_together():
    groups = (("front", "side", "back"), ("overhead",))
    assert allowed_views(groups, "side", ("side", "front", "back", "overhead")) == [True, True, True, False]


def test_scores_count_views_up_to_symmetry():
    grades = [
        seen("donut", "red", "back"),
        seen("donut", "red", "overhead"),
        seen("house", "blue", "front"),
        seen("house", "red", "side"),
    ]
    wanted = [captions.Spec(*x) for x in (("donut", "red", None, "front"), ("donut", "red", None, "front"))]
    wanted += [captions.Spec("house", "red", view="back"), captions.Spec("donut", "red")]
    result = score(grades, wanted)
    assert (result.object, result.color, result.view) == (0.75, 0.75, 0.5)
    assert result.mistakes["color of house: red seen as blue"] == 1
    assert result.mistakes["object: donut seen as house"] == 1
    assert "BELOW" in result.text()


def decorated(*probabilities: float) -> list[Grade]:
    """Views of a mug, with the probability that each shows stars; the rest is for dots."""
    tables = [{"decoration": {"stars": p, "dots": 1 - p}} for p in probabilities]
    return [Grade("mug", "blue", "side", "stars", table) for table in tables]


def test_commitment_is_how_many_views_name_one_decoration():
    mug = captions.parse("a mug")
    sure = commitment(decorated(*[0.95] * 6, 0.6, 0.2), mug)
    assert (sure.decoration, sure.sure, sure.committed) == ("stars", 6, True)
    torn = commitment(decorated(*[0.95] * 4, *[0.05] * 4), mug)
    assert torn.sure == 4 and not torn.committed
    blurred = commitment(decorated(*[0.6] * 8), mug)
    assert blurred.decoration == "stars" and blurred.sure == 0
    assert blurred.probability == pytest.approx(0.6)
    assert commitment(decorated(0.9), captions.parse("a cat")) is None


def test_prompts_go_through_everything():
    from toybox.objects import OBJECTS

    specs = [captions.parse(prompt) for prompt in draw_prompts(300)]
    for key, names in (("object", OBJECTS), ("color", captions.COLORS), ("view", captions.VIEWS)):
        counts = {name: sum(getattr(spec, key) == name for spec in specs) for name in names}
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.fixture(scope="module")
def data():
    """Donuts are small squares and houses are large ones, red or blue: learnt in a few dozen steps."""
    n = 64
    kinds, colors = torch.arange(n) % 2, torch.arange(n) // 2 % 2
    images = torch.zeros(n, 4, 64, 64, dtype=torch.uint8)
    for image, kind, color in zip(images, kinds, colors, strict=True):
        where = slice(24, 40) if kind == 0 else slice(6, 58)
        image[3, where, where] = 255
        image[2 if color == 0 else 0, where, where] = 220
    views = torch.tensor(
        [[True, True, True, False] if kind == 0 else [False, True, False, False] for kind in kinds]
    )
    return GraderData(images, kinds, colors, views, 1 + kinds, np.arange(n), np.arange(8), LABELS)


def test_training_learns_and_resumes_to_the_same_weights(data, tmp_path):
    with pytest.raises(Stopped):
        train_grader(data, tmp_path / "a.pt", 1.0, batch=16, steps=4, stop_after=2)
    resumed = train_grader(data, tmp_path / "a.pt", 1.0, batch=16, steps=4)
    straight = train_grader(data, tmp_path / "b.pt", 1.0, batch=16, steps=4)
    for a, b in zip(resumed.model.state_dict().values(), straight.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    learnt = train_grader(data, tmp_path / "c.pt", 1.0, batch=16, steps=30)
    assert learnt.report["object"] > 0.8  # chance is 0.5


def test_files_round_trip_and_command_line(data, tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    grader = Grader(Classifier(2, 2, 4, 3), LABELS, {"object": 0.5})
    grader.save(tmp_path / "grader")
    again = Grader.load(tmp_path / "grader")
    assert again.labels == LABELS and again.report == {"object": 0.5}
    images = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for a, b in zip(grader(images), again(images), strict=True):
        assert (a.object, a.color, a.view) == (b.object, b.color, b.view)
        assert abs(a.probabilities["object"]["donut"] - b.probabilities["object"]["donut"]) < 0.01  # float16
    with pytest.raises(ValueError, match=r"\[3, 128, 128\]"):
        grader(images[0])

    run = tmp_path / "run" / "save" / "it600-views"
    run.mkdir(parents=True)
    for azimuth in range(0, 360, 45):
        Image.new("RGB", (32, 32), (200, 30, 30)).save(run / f"{azimuth:03d}.png")
    monkeypatch.setattr(Grader, "load", classmethod(lambda cls, folder=None: again))
    assert main(["asset", str(tmp_path / "run"), "--prompt", "a red house"]) in (0, 1)
    assert "of 8 views" in capsys.readouterr().out
    assert main(["asset", str(tmp_path / "run"), "--prompt", "a red unicorn"]) == 2
    assert "toybox" in capsys.readouterr().err
    assert main(["asset", str(tmp_path / "run")]) == 2
    assert "--prompt" in capsys.readouterr().err
    (tmp_path / "run/configs").mkdir()
    (tmp_path / "run/configs/parsed.yaml").write_text("system: {prompt_processor: {prompt: a blue house}}")
    assert main(["asset", str(tmp_path / "run")]) in (0, 1)
    assert "a blue house\n" in capsys.readouterr().out
    assert main(["images", str(run / "000.png")]) == 0
    assert "000.png" in capsys.readouterr().out


def test_a_score_tells_what_is_below_its_bar():
    text = score([seen("house", "red", "front")], [captions.Spec("house", "blue", view="front")]).text()
    assert [line.split()[-1] for line in text.splitlines()] == ["ok", "BELOW", "ok"]


def test_wrong_pictures_get_a_red_frame():
    framed = with_borders(torch.zeros(2, 3, 16, 16), [False, True])
    assert framed[0].max() == 0
    assert framed[1, 0, 0, 8] > 0.8 and framed[1, :, 8, 8].max() == 0


def test_missing_grader_names_the_next_step(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"toybox\.grade train"):
        Grader.load(tmp_path)


def test_the_views_of_a_run_are_found(tmp_path):
    for step in (50, 600):
        folder = tmp_path / "save" / f"it{step}-views"
        folder.mkdir(parents=True)
        for azimuth in (0, 45, 90, 180):
            Image.new("RGB", (4, 4)).save(folder / f"{azimuth:03d}.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "save" / "it600-views.png")
    expected = [View(tmp_path / "save" / "it600-views" / f"{a:03d}.png", a) for a in (0, 45, 90, 180)]
    assert find_views(tmp_path) == find_views(tmp_path / "save") == expected
    assert find_views(tmp_path / "save" / "it600-views.png") == expected
    assert find_views(expected[1].path) == [expected[1]]
    assert [view.direction for view in expected] == ["front", None, "side", "back"]
    with pytest.raises(FileNotFoundError, match="no pictures"):
        find_views(tmp_path / "nowhere")


def test_only_this_runs_views_are_found(tmp_path):
    """Not those of a run that lies in its folder, nor those of the runs in a folder of runs."""
    for run, step in (("runs/one", 600), ("runs/one/code/outputs/two", 900)):
        for kind in ("views", "test"):
            folder = tmp_path / run / "save" / f"it{step}-{kind}"
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / "0.png")
        (tmp_path / run / "configs").mkdir()
        (tmp_path / run / "configs" / "parsed.yaml").touch()
    (tmp_path / "runs/one/save/it950-views").mkdir()  # empty: its run was stopped
    assert find_views(tmp_path / "runs/one")[0].path == tmp_path / "runs/one/save/it600-views/0.png"
    with pytest.raises(FileNotFoundError, match=r"runs there: .*runs/one"):
        find_views(tmp_path / "runs")


def test_without_views_frames_of_the_turntable_stand_for_them(tmp_path):
    folder = tmp_path / "save" / "it600-test"
    folder.mkdir(parents=True)
    for k in range(17):  # 0 to 360 degrees; opacity stands beside the colours
        picture = Image.new("RGB", (8, 4), (10 * k, 0, 0))
        picture.paste((255, 255, 255), (4, 0, 8, 4))
        picture.save(folder / f"{k}.png")
    views = find_views(tmp_path)
    assert [view.azimuth for view in views] == [0, 45, 90, 135, 180, 225, 270, 315]
    assert [view.path.stem for view in views] == ["0", "2", "4", "6", "8", "10", "12", "14"]
    pictures = read_pictures([view.path for view in views])
    assert pictures.shape == (8, 3, 4, 4)
    assert pictures[3].amax() * 255 == pytest.approx(60)


def test_the_prompt_of_a_run_is_in_its_config(tmp_path):
    views = tmp_path / "save" / "it2-views"
    (tmp_path / "configs").mkdir()
    views.mkdir(parents=True)
    (tmp_path / "configs/parsed.yaml").write_text("system: {prompt_processor: {prompt: a red mug}}")
    assert prompt_of_run(tmp_path) == prompt_of_run(views) == "a red mug"
    with pytest.raises(ValueError, match="--prompt"):
        prompt_of_run(tmp_path.parent)
