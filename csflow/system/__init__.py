"""Files, processes, ports, progress and everything else that touches the machine."""
