"""Pipelines of diffusers with tiny networks and random weights, built here: nothing is fetched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clip.errors import ConfigError, ShapeError
from clip.guidance.cutouts import Cutouts
from clip.guidance.denoising import guided, karras_sigmas, sample_euler
from clip.guidance.diffusers_adapter import denoiser_of_unet, guided_pipeline, latent_decoder
from clip.guidance.objective import Objective
from clip.model import CLIP
from clip.preprocess import Preprocess

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers")


@pytest.fixture
def objective(tiny_vit: CLIP) -> Objective:
    return Objective(tiny_vit, Preprocess(size=32), prompts=["a fox"], cutouts=Cutouts(count=2))


def unet(diffusers: Any, channels: int = 3) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


def pixels(diffusers: Any, scheduler: str = "DDIM") -> Any:
    pipeline = getattr(diffusers, f"{scheduler}Pipeline")(
        unet(diffusers), getattr(diffusers, f"{scheduler}Scheduler")(num_train_timesteps=100)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any, **options: Any) -> Tensor:
    """Four pictures of a fixed seed, (4, 3, H, W) in [0, 1]."""
    result = pipeline(
        num_inference_steps=8, generator=torch.Generator().manual_seed(5), output_type="np", **options
    ).images
    return torch.from_numpy(result).permute(0, 3, 1, 2)


def values(objective: Objective, images: Tensor) -> Tensor:
    with torch.no_grad():
        return objective(images, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheduler", ["DDIM", "DDPM"])
def test_pixels_fit_the_words_better_at_equal_steps(diffusers: Any, objective: Objective, scheduler: str) -> None:
    pipeline = pixels(diffusers, scheduler)
    before = values(objective, drawn(pipeline, batch_size=4))
    with guided_pipeline(pipeline, objective, scale=1000, generator=torch.Generator().manual_seed(1)):
        after = values(objective, drawn(pipeline, batch_size=4))
    assert (after < before - 0.05).all()
    torch.testing.assert_close(values(objective, drawn(pipeline, batch_size=4)), before)  # as it was


def test_no_scale_no_difference(diffusers: Any, objective: Objective) -> None:
    pipeline = pixels(diffusers)
    before = drawn(pipeline, batch_size=4)
    with guided_pipeline(pipeline, objective, scale=0):
        assert torch.equal(drawn(pipeline, batch_size=4), before)


def test_the_pipeline_is_as_before_after_an_error(diffusers: Any, objective: Objective) -> None:
    pipeline = pixels(diffusers)
    with pytest.raises(KeyError), guided_pipeline(pipeline, objective, scale=1):
        raise KeyError
    assert "step" not in vars(pipeline.scheduler)


def test_latents_are_decoded_for_the_objective(diffusers: Any, objective: Objective) -> None:
    """A DiT with an autoencoder and classifier-free guidance, as Stable Diffusion has, but without a text encoder,
    which would need transformers."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=4,
        num_attention_heads=2,
        in_channels=4,
        out_channels=4,
        num_embeds_ada_norm=1000,  # the pipeline takes 1000 for "no class"
        norm_elementwise_affine=False,
    )
    pipeline = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler(clip_sample=False)).to("cpu")
    pipeline.set_progress_bar_config(disable=True)
    options = {"class_labels": [1, 2, 3, 4], "guidance_scale": 4.0}
    before = values(objective, drawn(pipeline, **options))
    with guided_pipeline(pipeline, objective, scale=1e5, generator=torch.Generator().manual_seed(1)):
        after = values(objective, drawn(pipeline, **options))
    assert (after < before).all()
    assert (before - after).mean() > 0.1
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        plain = vae.decode(latents / 0.5).sample
        torch.testing.assert_close(latent_decoder(pipeline)(latents), ((plain + 1) / 2).clamp(0, 1))


SCHEDULERS = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True},
    "FlowMatchEulerDiscreteScheduler": {},
}


class Nudge:
    """Says that pictures should be one grey level more, at every pixel, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def value_and_gradient(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        self.seen.append(images)
        return images.new_zeros(len(images)), torch.zeros_like(images)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_objective_sees_what_the_scheduler_calls_the_clean_picture(
    diffusers: Any, name: str, prediction: str
) -> None:
    """An exact network for a single picture predicts it at every step, whatever the scheduler: so must the objective
    see it. And a gradient of zero leaves the result as it was, up to rounding there and back."""
    if name == "FlowMatchEulerDiscreteScheduler" and prediction != "epsilon":
        pytest.skip("it predicts a flow alone")
    if prediction == "sample" and name in ("PNDMScheduler", "EulerAncestralDiscreteScheduler"):
        pytest.skip("it has no such prediction")
    kind = {} if name.startswith("Flow") else {"prediction_type": prediction}
    picture = torch.rand(1, 3, 4, 4) * 1.6 - 0.8

    def run(scheduler: Any) -> Tensor:
        scheduler.set_timesteps(6)
        x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        generator = torch.Generator().manual_seed(1)
        for t in scheduler.timesteps:
            others = {"generator": generator} if name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler") else {}
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            x = scheduler.step(exact(scheduler, x, t), t, x, **others).prev_sample
        return x

    def exact(scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
        """The output that means the picture, from the definitions of each scheduler's page."""
        if name.startswith("Flow"):
            return (x - picture) / (t / 1000)
        if "Euler" in name or name.startswith("DPM"):
            sigma = scheduler.sigmas[scheduler.step_index or 0]
            kept = 1 / (1 + sigma**2)
            x = x * kept.sqrt() if "Euler" in name else x
        else:
            kept = scheduler.alphas_cumprod[int(t)]
        noise = (x - kept.sqrt() * picture) / (1 - kept).sqrt()
        return {"epsilon": noise, "sample": picture, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * picture}[
            prediction
        ]

    class Pipeline:
        scheduler = getattr(diffusers, name)(**SCHEDULERS[name], **kind)

    plain = run(Pipeline.scheduler)
    nudge = Nudge()
    with guided_pipeline(Pipeline, nudge, scale=1.0):
        led = run(Pipeline.scheduler)
    torch.testing.assert_close(led, plain, atol=2e-3, rtol=1e-3)  # at high noise the picture is divided out of it
    assert len(nudge.seen) == len(Pipeline.scheduler.timesteps)
    for seen in nudge.seen:
        torch.testing.assert_close(seen, (picture + 1) / 2, atol=5e-3, rtol=0)


def test_a_unet_becomes_a_denoiser_with_a_gradient(diffusers: Any, objective: Objective) -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=100)
    denoiser = denoiser_of_unet(unet(diffusers).eval(), scheduler)
    sigmas = karras_sigmas(4, least=0.1, most=5.0)
    x = torch.randn(2, 3, 16, 16) * sigmas[0]
    seeded = torch.Generator().manual_seed(0)
    pictures = [
        ((sample_euler(way, x, sigmas) + 1) / 2).clamp(0, 1)
        for way in (denoiser, guided(denoiser, objective, scale=300, generator=seeded))
    ]
    before, after = (values(objective, picture) for picture in pictures)
    assert (after < before).all()


def test_what_is_refused(diffusers: Any, objective: Objective) -> None:
    class Other:
        scheduler = diffusers.LMSDiscreteScheduler()

    with (
        pytest.raises(ConfigError, match=r"LMSDiscreteScheduler.*DDIMScheduler"),
        guided_pipeline(Other, objective, scale=1),
    ):
        pass
    with pytest.raises(ConfigError, match="works on pixels"):
        latent_decoder(pixels(diffusers))
    with pytest.raises(ConfigError, match="no alphas_cumprod"):
        denoiser_of_unet(unet(diffusers), diffusers.FlowMatchEulerDiscreteScheduler())
    pipeline = pixels(diffusers)
    with guided_pipeline(pipeline, objective, scale=1), pytest.raises(ShapeError, match="learned variance"):
        pipeline.scheduler.step(torch.zeros(1, 6, 16, 16), 1, torch.zeros(1, 3, 16, 16))
