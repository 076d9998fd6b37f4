"""Picture metrics: PSNR over covered pixels, SSIM, BD-rate."""
