"""The commands of `ssql`, one file each, and what several of them share."""
