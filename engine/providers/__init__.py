"""What generates: one file a provider behind one Protocol, and the way a request is routed to one."""
