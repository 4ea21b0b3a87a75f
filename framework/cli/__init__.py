"""What `launch.py` needs beside the run: flags and modes, worker processes on this machine, servers."""
