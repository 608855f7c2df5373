"""The data that a training reads: arrays, cells on a device, streamed counts. Imports only torch and numpy."""
