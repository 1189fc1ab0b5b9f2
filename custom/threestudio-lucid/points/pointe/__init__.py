"""Text to coloured points by Point-E (arXiv 2212.08751): its public models, and the bundled small one.

generate("a red mug", torch.Generator().manual_seed(0))                    # the bundled prior
generate("an avocado chair", torch.Generator().manual_seed(0), "pointe")   # OpenAI's
"""

from .checkpoints import BASE_URL, UPSAMPLER_URL
from .generator import Stage, TextToPointCloud, generate, load_folder, load_public

__all__ = ["BASE_URL", "UPSAMPLER_URL", "Stage", "TextToPointCloud", "generate", "load_folder", "load_public"]
