"""What all tests share: databases, contexts, a worker in this process, servers on free ports."""
