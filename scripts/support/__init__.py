"""What demo, tests and benches share: a daemon on a fresh pool, guests under QEMU, and their reports."""
