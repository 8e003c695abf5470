"""From any folder of images, or an archive of arrays, to arrays in memory."""
