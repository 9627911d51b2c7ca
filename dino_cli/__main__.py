"""`python -m dino_cli`, which `torchrun -m` needs; the same as the command `dino`."""

from dino_cli.app import main

if __name__ == "__main__":
    main()
