"""`python -m polyreel`: the command line."""

from polyreel.cli import main

if __name__ == "__main__":
    main()
