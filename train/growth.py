"""The former address of benchmarks.depth, by which a command in a result file calls it."""
import typer

from benchmarks.depth import main

if __name__ == '__main__':
    typer.run(main)
