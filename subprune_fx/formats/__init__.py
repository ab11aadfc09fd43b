"""Files in and out: networks (`load`, `write`), arrays (`arrays`), and writing without half-written files (`atomic`)."""
