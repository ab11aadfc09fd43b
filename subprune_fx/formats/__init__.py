"""Files in and out: networks (`load`), arrays (`arrays`), no half-written files (`atomic`)."""
