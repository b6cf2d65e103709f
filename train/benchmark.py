"""The former address of the experiments in benchmarks/, by which commands in result files call them."""
import typer

from benchmarks import compilation, imagenet, propagation, startup, steps, training

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
for name, command in dict(
        training=training.main, steps=steps.main, imagenet=imagenet.main, creation=startup.measure_creation,
        imports=startup.measure_imports, compilation=compilation.main, propagation=propagation.main).items():
    app.command(name)(command)

if __name__ == '__main__':
    app()
