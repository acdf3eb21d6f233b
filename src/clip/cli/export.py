"""``clip export``: a model → a folder that OpenVINO or ONNX Runtime runs, with a certificate of what it changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from clip.cli import options
from clip.cli.console import Session, json_line, say
from clip.cli.pictures import find

if TYPE_CHECKING:
    from clip.exports.certificate import Certificate
    from clip.exports.export import Engine
    from clip.model import Activation

__all__ = ["command"]


@options.verb(
    "export",
    example="""
clip export ViT-B/32 vit-b-32-int8 --to openvino --int8
clip classify photos/ --labels "cat,dog" --model vit-b-32-int8
clip export my-model.safetensors my-model-onnx --to onnx
""",
)
@click.argument("model")
@click.argument("output")
@click.option(
    "--to", type=click.Choice(["openvino", "onnx"]), required=True, help="The engine; ONNX Runtime runs onnx."
)
@click.option("--int8", is_flag=True, help="Matrix products in 8-bit integers; with --to openvino.")
@click.option(
    "--calibration",
    metavar="FOLDER",
    help="Pictures like yours, for the ranges of int8 and for the comparison, instead of the package's samples.",
)
@click.option(
    "--min-cosine",
    type=click.FloatRange(0, 1),
    default=0.999,
    show_default=True,
    metavar="X",
    help="Of any embedding in int8 to the exact one; nothing is written below it.",
)
@click.option(
    "--activation",
    type=click.Choice(["quick_gelu", "gelu"]),
    help="For weights that do not say: quick_gelu is OpenAI's, gelu that of most of OpenCLIP's.",
)
@options.json_output("Print the certificate as one JSON object.")
def command(
    session: Session,
    model: str,
    output: str,
    to: Engine,
    int8: bool,
    calibration: str | None,
    min_cosine: float,
    activation: Activation | None,
    as_json: bool,
) -> None:
    """Write a model for another engine.

    MODEL is a path, a name from 'clip models', or a repository on the Hugging Face Hub. OUTPUT is a folder that does
    not exist yet; every command takes it as --model, and then needs no torch.

    What was written is run beside the exact model, on real pictures; the certificate says what changed, how large both
    are and how long they take. An export that is not true to the model is not written.
    """
    from clip.exports.export import export

    options.download(session, model)
    pictures = None if calibration is None else list(find([calibration], on_problem=say))
    certificate = export(model, output, to, int8=int8, pictures=pictures, min_cosine=min_cosine, activation=activation)
    if as_json:
        print(json_line({"model": model, "output": output, "engine": to, "int8": int8, **certificate.to_dict()}))
    else:
        print("\n".join(table(certificate)))
        if not session.quiet:
            say(f"{model} is now {output} ({certificate.engine}, {'int8' if int8 else 'fp32'})")


def table(certificate: Certificate) -> list[str]:
    """The certificate as aligned lines."""
    fidelity = certificate.fidelity

    def cosine(plain: float, centred: float | None) -> str:
        return f"{plain:.6f}" + ("" if centred is None else f", centred {centred:.6f}")

    megabytes = f"{certificate.exported_bytes / 1e6:.1f} MB, the checkpoint {certificate.reference_bytes / 1e6:.1f} MB"
    rows = [
        ("compared with", f"{certificate.reference} in fp32, on {certificate.pictures} and {fidelity.texts} texts"),
        (
            "largest difference of features",
            f"images {certificate.image_difference:.1e}, texts {certificate.text_difference:.1e}",
        ),
        ("least cosine of images", cosine(fidelity.image_cosine, fidelity.image_centred_cosine)),
        ("least cosine of texts", cosine(fidelity.text_cosine, fidelity.text_centred_cosine)),
        ("largest change of a similarity", f"{fidelity.similarity_change:.2g}"),
        ("same best label", f"{certificate.same_labels} of {fidelity.images} pictures"),
        ("same best picture", f"{certificate.same_finds} of {certificate.captions} captions"),
        ("size on disk", megabytes),
    ]
    for latency in certificate.latencies:
        what = f"{latency.batch_size} {latency.tower}" + ("s" if latency.batch_size > 1 else "")
        times = f"{latency.exported_ms:.2f} ms, torch fp32 {latency.reference_ms:.2f} ms"
        rows.append((what, f"{times}: {latency.speed_up:.1f} times as fast"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
