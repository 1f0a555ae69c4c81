import sys

from training.segmentation.run import main

main(sys.argv[1:])
