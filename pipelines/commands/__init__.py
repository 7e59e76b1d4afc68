"""The commands of `latentmill`: one frozen dataclass a file, whose fields are its arguments.

A command returns its exit status and raises `ValueError` for what the user can mend.
"""
