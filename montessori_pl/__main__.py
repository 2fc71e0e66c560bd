"""`python -m montessori_pl` is the command `montessori-pl`."""

from montessori_pl.cli import main

if __name__ == "__main__":
    main()
