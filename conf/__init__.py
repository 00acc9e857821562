"""The YAML of r1mega, installed as the package `r1mega_conf`; see README.md."""
