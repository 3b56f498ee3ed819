"""Open-loop planning figures in every convention in use. Pure: numpy, shapely, and OpenCV's polygon fill.

Everything is in the ego frame of the keyframe (x forward, y left, meters), six steps of 0.5 s. A box is
[x, y, yaw, length, width]. Steps are judged one by one (bool [points]); ``horizons`` turns them into the figures at 1,
2 and 3 s by one of the three ways of counting.
"""
