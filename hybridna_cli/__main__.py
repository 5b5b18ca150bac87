"""`python -m hybridna_cli`: the same as the `hybridna` command; torchrun starts this."""

from hybridna_cli.app import main

if __name__ == "__main__":
    main()
