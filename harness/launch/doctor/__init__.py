"""Is this machine, or this allocation, fit for a study?

Every check is a line, with what to do about what is not right.

`examination` asks; a `probe` on each machine answers (one child process here, one task a node through srun in
an allocation), so that a machine that hangs is a line of the table and nothing else. What is heavy or may
hang runs in a child of the probe.
"""
