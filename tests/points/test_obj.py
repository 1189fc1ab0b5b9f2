"""OBJ and MTL files as the programs that write them really do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.fuzzing.shapes import picture
from threestudio_lucid.errors import UserError
from threestudio_lucid.points import read_file
from threestudio_lucid.points.meshes import read_surface

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
CORNERS = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
TWO = [[0, 1, 2], [0, 2, 3]]
RED, BLUE, GREY = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5] * 3


def color_of(path):
    colors = read_file(path, 100, torch.Generator().manual_seed(0)).colors
    assert (colors == colors[0]).all()
    return colors[0].tolist()


def write(folder, text, **files):
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    (folder / "a.obj").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "a.obj"


@pytest.mark.parametrize(
    "text",
    [
        SQUARE + "f 1 2 3 4\n",
        SQUARE.replace(" ", "\t") + "f\t1\t2\t3\t4\n",
        "\ufeff" + SQUARE + "f 1 2 3 4",
        (SQUARE + "f 1 2 3 4\n").replace("\n", "\r\n"),
        (SQUARE + "f 1 2 3 4\n").replace("\n", "\r"),
        SQUARE.replace("\n", " # a corner\n") + "f 1 2 3 4# a face\n",
        "#c\n\n  " + SQUARE + "  f  1   2 \\\n 3 \\\n 4  \n",
        SQUARE + "f -4 -3 -2 -1\n",
        SQUARE + "vt 0 0\nvn 0 0 1\nf 1/1/1 2/1/1 3/1/1 4/1/1\n",
        SQUARE + "vn 0 0 1\nf 1//1 2//1 3//1 4//1\n",
        SQUARE + "vt 0 0\nf 1/1 2/ 3 4/-1\n",
        SQUARE + "o a\ng b c\ns off\nl 1 2\np 1\nf 1 2\nf 1 2 3 4\n",
        SQUARE.replace(" 0\n", " 0 1.0\n") + "f 1 2 3 4\n",
        (SQUARE + "f 1 2 3 4\n").encode("utf-16"),
    ],
)
def test_ways_to_write_a_square(tmp_path, text):
    vertices, triangles = read_surface(write(tmp_path, text))
    assert vertices.tolist() == CORNERS and triangles.tolist() == TWO


def test_negative_numbers_count_from_the_line_they_stand_in(tmp_path):
    """Vertices and texture coordinates of the second part follow the faces of the first."""
    part = "f -4/-1 -3/-1 -2/-1 -1/-1\n"
    text = f"mtllib m.mtl\nusemtl A\n{SQUARE}vt 0.2 0\n{part}{SQUARE.replace('v 0', 'v 3')}vt 0.8 0\n{part}"
    path = write(tmp_path, text, m__mtl="newmtl A\nmap_Kd t.png\n", t__png=picture())
    vertices, triangles = read_surface(path)
    assert triangles.tolist() == [*TWO, [4, 5, 6], [4, 6, 7]]
    assert vertices[4:, 0].tolist() == [3, 1, 1, 3]
    cloud = read_file(path, 400, torch.Generator().manual_seed(0), fit=False)
    right = cloud.points[:, 0] > 1
    assert cloud.colors[right].unique(dim=0).tolist() == [BLUE]
    assert cloud.colors[~right].unique(dim=0).tolist() == [RED]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f 1 2 5", "not in the file"),
        ("f 1 2 0", "not in the file"),
        ("f 1 2 -5", "not in the file"),
        ("f 1/1 2/1 3/1", "not in the file"),
        ("f 1 2 x", "cannot be read as OBJ"),
        ("f 1 2 99999999999999999999", "not in the file|cannot be read as OBJ"),
        ("v 1 2\nf 1 2 3", "without three coordinates"),
        ("v 1 2 x\nf 1 2 3", "cannot be read as OBJ"),
        ("v 1 2 inf\nf 1 2 3", "not finite: 1 of 5 rows, first row 4"),
        ("v 3e38 2 0\nf 1 2 5", "units away"),
    ],
)
def test_damage_is_told(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_file(write(tmp_path, SQUARE + text + "\n"), 10, torch.Generator())


def test_a_large_polygon_is_cut_at_once(tmp_path):
    n = 20_000
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    text = "".join(f"v {x:.6f} {y:.6f} 0\n" for x, y in zip(np.cos(angles), np.sin(angles), strict=True))
    _, triangles = read_surface(write(tmp_path, text + "f " + " ".join(map(str, range(1, n + 1)))))
    assert len(triangles) == n - 2


# ---- colours -----------------------------------------------------------------------------------------------

COLORED = "v 0 0 0 1 0 0\nv 1 0 0 1 0 0\nv 1 1 0 1 0 0\nv 0 1 0 1 0 0\n"
FACE = "usemtl A\nf 1 2 3 4\n"


@pytest.mark.parametrize(
    "text", [COLORED, COLORED.replace("1 0 0\n", "255 0 0\n"), COLORED.replace("0 0\n", "0 0 1.0\n")]
)
@pytest.mark.parametrize("library", ["", "mtllib m.mtl\n"])
def test_vertex_colours_beside_a_material(tmp_path, text, library):
    assert color_of(write(tmp_path, library + text + FACE, m__mtl="newmtl A\nKd 0.8 0.8 0.8\n")) == RED


def test_a_part_without_vertex_colours_keeps_its_material(tmp_path):
    text = f"mtllib m.mtl\n{COLORED}{SQUARE}usemtl A\nf 1 2 3 4\nusemtl B\nf -4 -3 -2 -1\n"
    path = write(tmp_path, text, m__mtl="newmtl A\nKd 0 1 0\nnewmtl B\nKd 0 0 1\n")
    colors = read_file(path, 100, torch.Generator().manual_seed(0)).colors
    assert sorted(colors.unique(dim=0).tolist()) == [BLUE, RED]


@pytest.mark.parametrize(
    "mtl",
    [
        "newmtl A\nKd 1 0 0\n",
        "\ufeffnewmtl A\nKd 1 0 0\n",
        "newmtl A # red\nKd 1 0 0 # red\n",
        "newmtl\tA\n\tKd\t1\t0\t0\r\n",
        "newmtl B\nKd 0 0 1\nnewmtl A\nKd spectral x.rfl\nkd 1 0 \\\n 0\n",
    ],
)
def test_diffuse_colours(tmp_path, mtl):
    assert color_of(write(tmp_path, "mtllib m.mtl\n" + SQUARE + FACE, m__mtl=mtl)) == RED


def test_one_number_is_a_grey(tmp_path):
    path = write(tmp_path, "mtllib m.mtl\n" + SQUARE + FACE, m__mtl="newmtl A\nKd 0.25\n")
    assert color_of(path) == [0.25] * 3


def test_names_may_hold_spaces_and_number_signs(tmp_path):
    mtl = "newmtl Material #1\nKd 0 0 1\nnewmtl Material #25\nKd 1 0 0\n"
    text = "mtllib my #1 mats.mtl\n" + SQUARE + "usemtl Material #25\nf 1 2 3 4\n"
    (tmp_path / "my #1 mats.mtl").write_text(mtl)
    assert color_of(write(tmp_path, text)) == RED


@pytest.mark.parametrize(
    "lines", ["mtllib a.mtl\nmtllib b.mtl\n", "mtllib a.mtl b.mtl\n", "mtllib none.mtl B.MTL\n"]
)
def test_several_libraries(tmp_path, lines):
    files = {"a__mtl": "newmtl B\nKd 0 1 0\n", "b__mtl": "newmtl A\nKd 1 0 0\n"}
    assert color_of(write(tmp_path, "mtllib " + lines + SQUARE + FACE, **files)) == RED


def test_what_is_missing_is_told(tmp_path, told):
    assert color_of(write(tmp_path, "mtllib none.mtl\n" + SQUARE + FACE)) == GREY
    assert "names the materials 'none.mtl'" in told[0]
    mtl = "newmtl B\nmap_Kd unused.png\nnewmtl C\nKd 1 0 0\nmap_Kd none.png\n"
    told.clear()
    assert color_of(write(tmp_path, "mtllib m.mtl\n" + SQUARE + FACE, m__mtl=mtl)) == GREY
    assert "does not describe" in told[0].replace("do not", "does not") and told[0].endswith(": A.")
    told.clear()
    assert color_of(write(tmp_path, "mtllib m.mtl\n" + SQUARE + FACE.replace("A", "C"), m__mtl=mtl)) == RED
    assert len(told) == 1 and "'none.png'" in told[0]


def textured(folder, line, uv=(0.8, 0.9)):
    """All corners at one place of a picture: left half red, right half blue; v upwards."""
    text = f"mtllib m.mtl\n{SQUARE}vt {uv[0]} {uv[1]}\nusemtl A\nf 1/1 2/1 3/1 4/1\n"
    return write(folder, text, m__mtl=f"newmtl A\nKd 0 0 0\n{line}\n")


@pytest.mark.parametrize(
    ("line", "color"),
    [
        ("map_Kd t.png", BLUE),
        ("map_Kd maps\\t.png", BLUE),
        ("map_Kd C:\\Users\\me\\T.PNG", BLUE),
        ("map_Kd D:\\assets\\deep\\only.png", BLUE),
        ("map_Kd ../../assets/Deep/only.png", BLUE),
        ("map_Kd /home/me/maps/t.png", BLUE),
        ('map_Kd "t.png"', BLUE),
        ("map_kd t.png # a comment", BLUE),
        ("map_Kd -s 1 1 1 t.png", BLUE),
        ("map_Kd -s 0.5 t.png", RED),
        ("map_Kd -s 0.5 1 t.png", RED),
        ("map_Kd -o 0.5 0 0 t.png", RED),
        ("map_Kd -o 0.5 -s 1 1 1 -bm 0.3 -clamp on t.png", BLUE),
        ("map_Kd -blendu on -blendv off -mm 0 1 -texres 512 -imfchan r -t 1 t.png", BLUE),
        ("map_Kd -o -0.5 my picture.png", RED),
        ("map_Kd -unheard of t.png", BLUE),
    ],
)
def test_textures(tmp_path, line, color):
    (tmp_path / "maps").mkdir()
    (tmp_path / "deep").mkdir()
    for name in ("t.png", "maps/t.png", "my picture.png", "deep/only.png"):
        (tmp_path / name).write_bytes(picture())
    assert color_of(textured(tmp_path, line)) == color


def test_materials_in_a_folder_of_their_own(tmp_path):
    """Pictures lie beside the MTL file, or beside the OBJ file that names it."""
    (tmp_path / "mats").mkdir()
    text = f"mtllib mats/m.mtl\n{SQUARE}vt 0.8 0.9\nusemtl A\nf 1/1 2/1 3/1 4/1\n"
    (tmp_path / "mats" / "m.mtl").write_text("newmtl A\nmap_Kd t.png\n")
    for folder in (tmp_path, tmp_path / "mats"):
        (folder / "t.png").write_bytes(picture())
        assert color_of(write(tmp_path, text)) == BLUE
        (folder / "t.png").unlink()


def test_v_is_0_at_the_lower_edge(tmp_path):
    from PIL import Image

    image = Image.new("RGB", (2, 2), (255, 0, 0))
    image.paste((0, 0, 255), (0, 1, 2, 2))
    image.save(tmp_path / "t.png")
    assert color_of(textured(tmp_path, "map_Kd t.png", (0.5, 0.1))) == BLUE


def test_a_damaged_texture_is_told(tmp_path):
    (tmp_path / "t.png").write_bytes(picture()[:45])
    with pytest.raises(UserError, match=r"t\.png cannot be read as a picture"):
        color_of(textured(tmp_path, "map_Kd t.png"))
