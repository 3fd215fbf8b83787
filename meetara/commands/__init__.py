"""Groups of commands, a module for each: `meetara budget …`, `data …`, `keys …`, `models …`, `user …`."""
