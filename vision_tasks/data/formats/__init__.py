"Readers and writers, one file per format; units become pixels here"
