"""The former address of benchmarks.int8, by which a command in a result file calls it."""
import typer

from benchmarks.int8 import main

if __name__ == '__main__':
    typer.run(main)
