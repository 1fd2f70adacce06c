"""Prints the files and entry points of the installed add-on."""

from importlib.metadata import distribution

addon = distribution("superset-extension-storage")
print(addon.version)
for entry in sorted(addon.entry_points, key=str):
    print(entry)
for file in sorted(map(str, addon.files)):
    if "dist-info" not in file and "__pycache__" not in file:
        print(file)
