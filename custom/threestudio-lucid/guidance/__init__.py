"""Score distillation: the prior, the DDIM trajectory, and one small file per objective.

- schedule: noise levels, timestep range, interval, weight (plain functions)
- trajectory: DDIM steps and inversion (plain functions on tensors)
- combine: classifier-free guidance and Perp-Neg (plain functions on tensors)
- ism, sds: the objectives, latents in, gradient out (plain functions on tensors)
- cards, folder, prior, vocabulary: the diffusion model, and what a config must know about it
- adapters, lora, embeddings: what is added to it: LoRA, and words learned by textual inversion
- sample: pictures from the prior alone
- lucid_guidance: the classes registered with threestudio (the only file that imports it)
"""
