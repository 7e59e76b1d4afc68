"""Images made from images: inpainted, drawn anew from a certain noise on, denoised."""
