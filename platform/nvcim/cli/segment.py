"""The verbs of `nvcim segment`."""

import typer

from nvcim.cli.segment_predict import predict
from nvcim.cli.segment_score import score
from nvcim.cli.segment_suggest import suggest
from nvcim.cli.segment_train import train

segment_app = typer.Typer(no_args_is_help=True, help="Segmentation of touching objects in images.")
segment_app.command("train")(train)
segment_app.command("predict")(predict)
segment_app.command("score")(score)
segment_app.command("suggest")(suggest)
