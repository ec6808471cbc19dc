"""The journal: everything that must survive, written in groups, acknowledged one by one."""
