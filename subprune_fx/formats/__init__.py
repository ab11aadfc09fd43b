"""Files in and out: networks (`load`, `write`), arrays (`arrays`), no half-written files (`atomic`)."""
