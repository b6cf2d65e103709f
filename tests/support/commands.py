"""Scripts of one command, run as from the shell but in this process."""
import typer
from typer.testing import CliRunner


def run(main, *arguments):
    """Run what a script hands to typer.run; exit code and output."""
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
