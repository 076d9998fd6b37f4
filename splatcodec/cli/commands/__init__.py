"""One module a command, found without a list; a new command is one new file.

The module's name is the command's, its docstring the help (first line: summary; the rest: description and examples).
It offers `add_arguments(parser)` and `run(args, console) -> int`, the exit code. Nothing heavy is imported at the top,
because every module is imported for `splatcodec --help`; a test holds that.
"""
