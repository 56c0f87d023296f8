"""Rendering of radiance fields: cameras → rays → samples → colour, depth, opacity, normals.

    rays = cameras.rays(camera, pixels)
    near, far = sampling.intersect_box(rays.origins, rays.directions, low, high)
    samples = occupancy.march(grid, rays, near, far, …)  # or proposal.sample(…)
    colour, depth, opacity, weights = volume.render(field, rays, samples, background)

A field is any function (points [m, 3], directions [m, 3]) → (sigma [m], rgb [m, c]). Everything has
fixed shapes and runs inside jit. The world is right-handed; a camera looks along its −z, with x to
the right and y up (OpenGL, Blender). t: distance along the unit ray, world units; sigma: 1 / world
unit. The first pixel's centre is at (0.5, 0.5), x to the right, y down.
"""
