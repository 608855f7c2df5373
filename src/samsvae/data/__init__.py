"""What training reads: arrays, cells on a device, streamed counts. Imports torch and numpy."""
