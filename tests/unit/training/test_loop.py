from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import PREPROCESS, Colours, Trainer, new_model
from torch import Tensor

import clip
from clip.checkpoints.files import fingerprint, read_checkpoint
from clip.data.augment import Augmentation, TrainingPreprocess
from clip.data.loading import Batch
from clip.data.sources import Mixture
from clip.errors import ClipError, ConfigError, DataError
from clip.model import CLIP, CLIPConfig
from clip.training.distributed import Towers
from clip.training.report import StepReport, read_metrics
from clip.training.start import fresh_model, with_logit_bias
from clip.training.stopping import StoppedError
from clip.training.teacher import FileTeacher, ModelTeacher


def losses(run: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(run) if "loss" in line]


def weights(path: Path) -> dict[str, Tensor]:
    model, _ = clip.load(path, device="cpu")
    return model.state_dict()


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def stop_after(step: int, number: int = signal.SIGTERM) -> Callable[[StepReport], None]:
    def stop(report: StepReport) -> None:
        if report.step == step:
            os.kill(os.getpid(), number)

    return stop


def test_it_learns_to_tell_the_pairs_apart(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    result = trainer(steps=60, batch_size=12, log_every=20)
    (_, first), *_, (_, last) = losses(trainer.run)
    assert last < 0.5 * first
    assert (result.steps, result.resumed_from, result.was_finished) == (60, 0, False)
    model, preprocess = clip.load(result.model, device="cpu")
    assert preprocess == PREPROCESS
    source = Colours()
    batch = torch.stack([PREPROCESS(clip.images.read_pixels(source[i].image)) for i in range(12)])
    with torch.no_grad():
        logits, _ = model(batch, clip.tokenize([source[i].captions[0] for i in range(12)], 16))
    assert int((logits.argmax(dim=1) == torch.arange(12)).sum()) >= 8


def test_what_a_line_of_metrics_says(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer(epochs=2, batch_size=5, source=Colours(count=12))
    lines = read_metrics(trainer.run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1]
    for line in lines:
        assert {"loss", "logit_scale", "learning_rate", "gradient_norm", "samples_per_second"} < line.keys()
        assert 0 <= line["wait_share"] <= 1


@pytest.mark.parametrize("stop", [1, 3, 5, 6])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    recipe: dict[str, Any] = {"steps": 8, "ema": 0.9, "patch_dropout": 0.5, "checkpoint_every": 4, "wise_ft": 0.7}
    trainer = Trainer(tmp_path)
    whole = trainer(output=tmp_path / "whole", **recipe)
    with pytest.raises(StoppedError, match=rf"stopped by SIGTERM after step {stop} of 8, which is saved") as stopped:
        trainer(on_step=stop_after(stop), **recipe)
    assert stopped.value.status == 143
    result = trainer(**recipe)
    assert result.resumed_from == stop
    assert losses(trainer.run) == losses(tmp_path / "whole")
    assert_equal(weights(result.model), weights(whole.model))


def test_sigint_saves_too_and_handlers_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError) as stopped:
        Trainer(tmp_path)(on_step=stop_after(2, signal.SIGINT))
    assert stopped.value.status == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_lines_after_the_last_checkpoint_are_not_there_twice(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)

    def fail(report: StepReport) -> None:
        if report.step == 5:
            raise KeyboardInterrupt  # as by a second Ctrl-C: nothing is saved

    with pytest.raises(KeyboardInterrupt):
        trainer(steps=7, checkpoint_every=3, on_step=fail)
    assert [step for step, _ in losses(trainer.run)] == [1, 2, 3, 4]
    with (trainer.run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut by a kill
    assert trainer(steps=7, checkpoint_every=3).resumed_from == 3
    assert [step for step, _ in losses(trainer.run)] == [1, 2, 3, 4, 5, 6, 7]


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    first = trainer()
    before = {path: path.stat().st_mtime_ns for path in trainer.run.rglob("*") if path.name == "model.safetensors"}
    again = trainer()
    assert again.was_finished
    assert again.metrics == first.metrics
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_finished_run_goes_on_to_more_steps(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer(steps=3)
    assert trainer(steps=5).resumed_from == 3
    assert [step for step, _ in losses(trainer.run)] == [1, 2, 3, 4, 5]
    with pytest.raises(ConfigError, match="is at step 5, beyond the 4 asked for"):
        trainer(steps=4)


def test_a_finished_run_is_mixed_anew_with_its_start(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer(wise_ft=0.25)
    again = trainer(wise_ft=0.75)
    assert (again.was_finished, again.resumed_from) == (False, 4)
    direct = trainer(wise_ft=0.75, output=tmp_path / "direct")
    assert_equal(weights(again.model), weights(direct.model))
    assert trainer(wise_ft=0.75).was_finished


def test_a_run_killed_before_its_result_is_validated_as_any_other(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    options: dict[str, Any] = {"evaluators": [lambda model: {"validation/number": 3.0}], "validate_every": 2}
    trainer(**options)
    (trainer.run / "result.json").unlink()
    (trainer.run / "model.safetensors").unlink()
    assert trainer(**options).metrics["validation/number"] == 3
    assert [line["step"] for line in read_metrics(trainer.run) if "validation/number" in line] == [2, 4]


def test_a_changed_recipe_is_refused_and_named(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer(steps=2)
    with pytest.raises(ConfigError) as error:
        trainer(steps=3, seed=1, learning_rate=0.5, keep=7, source=Colours(count=13))
    message = str(error.value)
    for part in ("seed was 0 and is 1", "learning_rate was 0.01 and is 0.5", "data.records was 12 and is 13"):
        assert part in message
    assert "keep" not in message
    with pytest.raises(ConfigError, match="start was "):
        trainer(steps=3, model=_other_weights())
    assert trainer(steps=3).resumed_from == 2


def _other_weights() -> CLIP:
    model = new_model()
    with torch.no_grad():
        model.text_projection.mul_(2)
    return model


def test_before_the_first_checkpoint_the_recipe_may_change(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    with pytest.raises(DataError):
        trainer(max_failures=0.0, source=Colours(broken=(1,)))
    assert trainer(seed=5).resumed_from == 0


def test_micro_batches_give_the_same_curve(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    # Small, because AdamW's first steps are as long for a gradient of rounding errors as for any other.
    recipe: dict[str, Any] = {"learning_rate": 1e-4}
    trainer(output=tmp_path / "whole", **recipe)
    trainer(micro_batch_size=2, **recipe)
    for (_, one), (_, other) in zip(losses(trainer.run), losses(tmp_path / "whole"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_only_a_micro_batch_is_in_a_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, teacher = new_model(), new_model()
    seen: dict[str, set[int]] = {"student": set(), "teacher": set()}
    for who, network in (("student", model), ("teacher", teacher)):

        def noting(images: Tensor, who: str = who, encode: Any = network.encode_image) -> Tensor:
            seen[who].add(len(images))
            return encode(images)  # type: ignore[no-any-return]

        monkeypatch.setattr(network, "encode_image", noting)
    target = ModelTeacher(teacher, PREPROCESS, student=model, student_preprocess=PREPROCESS, micro_batch_size=4)
    Trainer(tmp_path)(model=model, teacher=target, batch_size=12, micro_batch_size=4, steps=1)
    assert seen == {"student": {4}, "teacher": {4}}


class Elsewhere(torch.nn.Module):
    """A model on another device than its inputs, whose features are the inputs themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros((), device="meta"))

    def encode_image(self, image: Tensor) -> Tensor:
        return image.flatten(1)

    def encode_text(self, text: Tensor) -> Tensor:
        return text.float()


def test_the_towers_take_their_rows_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # "meta" has none
    towers = Towers(Elsewhere(), is_bf16=False)  # type: ignore[arg-type]
    embeddings = towers(torch.zeros(2, 3, 4, 4), torch.zeros(2, 16, dtype=torch.int64))
    assert [side.device.type for side in embeddings] == ["meta", "meta"]


def test_bad_records_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer(tmp_path)
    trainer(epochs=2, batch_size=12, source=Colours(broken=(3, 7)))
    assert [line["failures"] for line in read_metrics(trainer.run)] == [2, 4]
    assert "step 1: left out: colours:" in caplog.text


def test_a_locked_tower_keeps_its_weights(tmp_path: Path) -> None:
    start = {name: value.clone() for name, value in new_model().state_dict().items()}
    for lock, kept in (("image", "visual."), ("text", "transformer.")):
        trainer = Trainer(tmp_path / lock)
        trainer(lock=lock)
        now = trainer.model.state_dict()
        same = {name for name in start if torch.equal(start[name], now[name])}
        assert {name for name in start if name.startswith(kept)} <= same
        assert "logit_scale" not in same
        assert any(name not in same for name in start if name.startswith(("visual.", "transformer.")))


def test_batch_statistics_of_a_locked_tower_stay(tmp_path: Path, tiny_resnet: CLIP) -> None:
    start = {name: value.clone() for name, value in tiny_resnet.visual.state_dict().items()}
    preprocess = dataclasses.replace(PREPROCESS, size=64)
    Trainer(tmp_path)(model=tiny_resnet, lock="image", steps=2, preprocess=preprocess, transform=preprocess)
    assert_equal(dict(tiny_resnet.visual.state_dict()), start)


def test_batch_statistics_are_resumed(tmp_path: Path) -> None:
    config = CLIPConfig(
        embed_dim=16,
        image_resolution=32,
        vision_layers=(1, 1, 1, 1),
        vision_width=8,
        vision_patch_size=None,
        transformer_width=16,
        transformer_layers=1,
    )
    preprocess = dataclasses.replace(PREPROCESS, size=32)
    trainer = Trainer(tmp_path)

    def go(**options: Any) -> Any:
        torch.manual_seed(0)
        model = CLIP.from_config(config)
        return trainer(model=model, preprocess=preprocess, transform=preprocess, micro_batch_size=4, **options)

    whole = go(output=tmp_path / "whole")
    with pytest.raises(StoppedError):
        go(on_step=stop_after(2))
    assert_equal(weights(go().model), weights(whole.model))


def test_weights_between_start_and_end(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    whole = weights(trainer(output=tmp_path / "whole").model)
    mixed = weights(trainer(wise_ft=0.25).model)
    start = new_model().state_dict()
    for name, value in mixed.items():
        torch.testing.assert_close(value, torch.lerp(start[name], whole[name], 0.25))
    zero = weights(trainer(wise_ft=0.0, output=tmp_path / "zero").model)
    assert_equal(zero, dict(start))


def test_the_average_is_the_result_and_the_weights_are_in_the_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    result = trainer(ema=0.9)
    plain = trainer(output=tmp_path / "plain")
    assert_equal(weights(trainer.run / "checkpoints" / "step_00000004" / "model.safetensors"), weights(plain.model))
    differences = (weights(result.model)["visual.proj"] - weights(plain.model)["visual.proj"]).abs()
    assert 0 < float(differences.max()) < 0.1


def test_the_sigmoid_loss_needs_and_trains_a_bias(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the sigmoid loss needs a logit_bias and the model has none"):
        Trainer(tmp_path)(loss="sigmoid")
    model = with_logit_bias(new_model())
    assert model.logit_bias is not None
    result = Trainer(tmp_path)(loss="sigmoid", model=model)
    assert float(weights(result.model)["logit_bias"]) != -10
    assert with_logit_bias(model) is model


def test_equal_captions_are_no_negatives(tmp_path: Path) -> None:
    source = Colours(count=8, captions=("the same",) * 8)
    trainer = Trainer(tmp_path)
    trainer(batch_size=8, steps=1, mask_equal=True, source=source)
    assert losses(trainer.run)[0][1] == pytest.approx(0, abs=1e-6)  # nothing is left to be told apart
    trainer(batch_size=8, steps=1, source=source, output=tmp_path / "plain")
    assert losses(tmp_path / "plain")[0][1] > 1


def test_a_student_goes_where_its_teacher_is(tmp_path: Path) -> None:
    torch.manual_seed(7)
    teacher = new_model()
    torch.nn.init.normal_(teacher.text_projection)
    student = new_model()
    target = ModelTeacher(teacher, PREPROCESS, student=student, student_preprocess=PREPROCESS)
    trainer = Trainer(tmp_path)
    trainer(model=student, teacher=target, distillation=10.0, steps=30, batch_size=12)
    (_, first), *_, (_, last) = losses(trainer.run)
    assert last < first - 3  # of the 10 that a cosine of 0 costs for each tower


def test_a_teacher_of_another_size_sees_the_same_picture() -> None:
    torch.manual_seed(0)
    teacher = CLIP.from_config(dataclasses.replace(new_model().config, image_resolution=32)).eval()
    its_own = dataclasses.replace(PREPROCESS, size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    target = ModelTeacher(teacher, its_own, student=new_model(), student_preprocess=PREPROCESS)
    source = Colours(count=3)
    pixels = [clip.images.read_pixels(source[i].image) for i in range(3)]
    batch = _batch(torch.stack([PREPROCESS(each) for each in pixels]), ["a", "b", "c"])
    images, texts = target(batch)
    with torch.no_grad():
        expected = clip.features.normalized(teacher.encode_image(torch.stack([its_own(each) for each in pixels])))
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert texts is not None
    assert texts.shape == (3, 16)
    in_parts = ModelTeacher(teacher, its_own, student=new_model(), student_preprocess=PREPROCESS, micro_batch_size=2)(
        batch
    )
    torch.testing.assert_close(in_parts, (images, texts))


def _batch(images: Tensor, captions: list[str], rows: list[int] | None = None) -> Batch:
    return Batch(
        images=images,
        texts=clip.tokenize(captions, 16).long(),
        keys=captions,
        rows=torch.tensor(rows if rows is not None else list(range(len(captions)))),
        captions=captions,
        labels=None,
        failures=(),
        step=0,
        epoch=0,
        wait_seconds=0.0,
    )


def test_a_teacher_in_files(tmp_path: Path) -> None:
    import numpy as np

    rows = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float16)
    np.save(tmp_path / "texts.npy", rows)
    target = FileTeacher(images=None, texts=tmp_path / "texts.npy", records=12, student=new_model())
    images, texts = target(_batch(torch.zeros(2, 3, 16, 16), ["a", "b"], rows=[5, 3]))
    assert images is None
    assert texts is not None
    torch.testing.assert_close(texts, torch.nn.functional.normalize(torch.from_numpy(rows[[5, 3]]).float(), dim=1))
    for records, width, message in ((11, 16, "has 12 rows and the data 11 records"), (12, 8, "of 16 numbers, the st")):
        with pytest.raises(ConfigError, match=message):
            FileTeacher(images=tmp_path / "texts.npy", texts=None, records=records, student=new_model(embed_dim=width))
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with pytest.raises(ConfigError, match=r"not a \.npy file of embeddings"):
        FileTeacher(images=tmp_path / "bad.npy", texts=None, records=12, student=new_model())


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_loss_that_is_not_finite_names_step_tower_and_samples(tmp_path: Path, tower: str) -> None:
    trainer = Trainer(tmp_path)
    trainer(steps=2)

    class Poison:
        """Makes one record's image endless from its second pass on."""

        def __init__(self) -> None:
            self.size, self.shorter_side = 16, None

        def __call__(self, pixels: Any, generator: Any) -> Tensor:
            image = PREPROCESS(pixels)
            return image * float("nan") if (pixels[0, 0] == _pixel(4)).all() else image

    model = new_model()
    if tower == "image":
        with pytest.raises(ClipError) as error:
            trainer(steps=8, model=model, transform=Poison())
        assert "the image tower gives features that are not finite for 1 samples: colours:4;" not in str(error.value)
        assert "the image tower gives features that are not finite for 1 samples: colours:4." in str(error.value)
    else:
        word = int(clip.tokenize(["nine"], 16)[0, 1])

        def poison(report: StepReport) -> None:
            with torch.no_grad():
                model.token_embedding.weight[word] = float("nan")

        source = Colours(captions=tuple(f"number {'nine' if i == 9 else i}" for i in range(12)))
        with pytest.raises(ClipError) as error:
            trainer(steps=8, model=model, source=source, on_step=poison, output=tmp_path / "other")
        assert "the text tower gives features that are not finite for 1 samples: colours:9." in str(error.value)
    assert str(error.value).startswith("step ")
    if tower == "image":
        assert "the checkpoint of step 2 is kept" in str(error.value)
        assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
        assert trainer(steps=4).resumed_from == 2


def _pixel(index: int) -> Any:
    return clip.images.read_pixels(Colours()[index].image)[0, 0]


def test_evaluators_see_the_result_and_change_nothing(tmp_path: Path) -> None:
    seen: list[tuple[bool, float]] = []

    def evaluate(model: CLIP) -> dict[str, float]:
        torch.rand(3)
        seen.append((model.training, float(model.state_dict()["visual.proj"].sum())))
        return {"validation/number": float(len(seen))}

    trainer = Trainer(tmp_path)
    plain = trainer(output=tmp_path / "plain", ema=0.5)
    result = trainer(evaluators=[evaluate], validate_every=2, ema=0.5)
    assert [was_training for was_training, _ in seen] == [False, False]
    assert seen[-1][1] == float(weights(result.model)["visual.proj"].sum())
    assert_equal(weights(result.model), weights(plain.model))
    found = [line for line in read_metrics(trainer.run) if "validation/number" in line]
    assert [line["step"] for line in found] == [2, 4]
    assert result.metrics["validation/number"] == 2


def test_bf16_is_asked_for_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="clip.training.loop")
    trainer = Trainer(tmp_path)
    result = trainer(precision="bf16")
    assert "weights fp32, products bf16" in caplog.text
    assert {value.dtype for value in weights(result.model).values()} == {torch.float32}
    trainer(output=tmp_path / "plain")
    assert losses(trainer.run) != losses(tmp_path / "plain")
    assert losses(trainer.run)[0][1] == pytest.approx(losses(tmp_path / "plain")[0][1], abs=0.02)


def test_gradient_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer(output=tmp_path / "plain")
    trainer(gradient_checkpointing=True)
    for (_, one), (_, other) in zip(losses(trainer.run), losses(tmp_path / "plain"), strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_the_scale_is_clamped_after_the_step(tmp_path: Path) -> None:
    model = new_model()
    with torch.no_grad():
        model.logit_scale.fill_(4.7)
    trainer = Trainer(tmp_path)
    trainer(model=model, steps=2)
    assert [line["logit_scale"] <= 100.001 for line in read_metrics(trainer.run)] == [True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": Colours(count=0)}, "colours has no records; there is nothing to train on"),
        ({"distillation": 1.0}, "distillation is given and there is no teacher"),
        ({"fsdp": True}, "fsdp is given and there is one process; start more with --nproc or torchrun"),
    ],
)
def test_combinations_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(tmp_path)(**options)


def test_a_model_in_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model is not in fp32"):
        Trainer(tmp_path)(model=new_model().half())


def test_patch_dropout_of_a_resnet_is_refused(tmp_path: Path, tiny_resnet: CLIP) -> None:
    with pytest.raises(ConfigError, match="the image tower is a ResNet, which has no patches"):
        Trainer(tmp_path)(model=tiny_resnet, patch_dropout=0.5)


def test_a_last_pair_alone_makes_no_step(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer(epochs=1, batch_size=3, source=Colours(count=4))
    first, second = read_metrics(trainer.run)
    assert first["loss"] > 0
    assert (second["step"], second["gradient_norm"]) == (2, 0.0)


def test_what_is_recorded(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer(about={"inputs": {"template": ["a {}"]}})
    record = json.loads((trainer.run / "config.json").read_text())
    assert record["train"]["batch_size"] == 6
    assert record["data"] == {"name": "colours", "records": 12}
    assert record["preprocess"] == PREPROCESS.to_dict()
    assert record["inputs"] == {"template": ["a {}"]}
    with pytest.raises(ConfigError, match=r"inputs\.template was .* and is "):
        trainer(steps=5, about={"inputs": {"template": ["b {}"]}})


def test_a_model_file_tells_how_it_was_made(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    preprocess = TrainingPreprocess(PREPROCESS, augmentation=Augmentation(flip=0.5))
    two = Mixture(
        (Colours(name="/srv/somebody/sets/colours"), Colours(name="https://host/a/b.tar?signature=0")), (0.5, 0.5)
    )
    result = trainer(
        steps=4, checkpoint_every=2, seed=7, source=two, transform=preprocess, licence="CC BY 4.0", batch_size=6
    )
    files = [trainer.run / "checkpoints" / "step_00000002" / "model.safetensors", result.model]
    for steps, file in zip((2, 4), files, strict=True):
        checkpoint = read_checkpoint(file)
        assert checkpoint.licence == "CC BY 4.0"
        assert checkpoint.training == {
            "everyclip": clip.__version__,
            "start": fingerprint(checkpoint.config, new_model().state_dict()),
            "data": ["sets/colours", "a/b.tar"],
            "augmentation": preprocess.augmentation.to_dict(),
            "steps": steps,
            "batch_size": 6,
            "seed": 7,
        }


def test_fresh_models_by_name_and_seed() -> None:
    one, same, other = (fresh_model("tiny", seed=seed).text_projection for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert fresh_model("tiny", logit_bias=True).logit_bias is not None
    with pytest.raises(clip.errors.ModelNotFoundError, match="architecture 'tinny' is not known; known are tiny, "):
        fresh_model("tinny")


def test_a_compiler_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import Unsupported

    model = new_model()

    def fail(image: Tensor) -> Tensor:
        raise Unsupported("C++ compile error\n" + "g++ says a lot\n" * 1000)

    monkeypatch.setattr(model, "encode_image", fail)
    with pytest.raises(ClipError) as error:
        Trainer(tmp_path)(model=model)
    assert str(error.value) == "torch.compile has failed (C++ compile error); train without --compile"
