"""Read and write weights of the release of the SAMS-VAE authors."""
