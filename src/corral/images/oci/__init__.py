"""Images of other makers: pulled from registries, unpacked from archives, and written as archives that others take.

What is read here was made by strangers. All of it happens in a process of its own (`__main__`), started for one import or export: what it needs of memory and
mounts ends with it, and the server goes on serving meanwhile.

reference    what a name means: registry, repository, tag or digest
documents    index, manifest and configuration, read strictly
registry     fetches from a registry; challenge: how it wants to be asked
archive      finds the same in an archive; rootfs: a bare tar file
layer        one layer's bytes: checked by digest while they are decompressed
unpack       its entries, put below a directory and nowhere else
importer     all of one image: layers as directories, each named by everything below it
exporter     the way back
"""
