"""The words of every `align` command. Imported for `align --help`: what does the work is imported when asked for."""
