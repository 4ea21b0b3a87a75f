"""The command line: flags and modes, worker processes on this machine, servers."""
