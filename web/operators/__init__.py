"""What operators see and may do, as JSON: the tree, processes, queues, the journal. Start at `routes`.

Reading asks no process and changes nothing. Actions need the operator's role and are written to the audit log.
"""
