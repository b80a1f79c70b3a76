"""`python -m orchestration` is `t2i`."""

from orchestration.cli import main

if __name__ == "__main__":
    main()
