"Research on medical images in notebooks: breast density from mammograms in DICOM, end to end."
__version__ = '0.1.0'
