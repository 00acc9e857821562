"""The plugins that ship with r1mega, imported as `r1mega_plugins`. They use the same hooks as anybody's."""
