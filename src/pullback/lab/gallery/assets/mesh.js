// Draws small meshes on a canvas, far faces first; dragging or the arrow keys turn them.
"use strict";
(() => {
  function view(canvas, mesh) {
    let turn = 0.6, tilt = -0.4, held = null;
    const context = canvas.getContext("2d");

    function draw() {
      const ratio = devicePixelRatio || 1;
      const width = canvas.clientWidth, height = canvas.clientHeight;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      const [ct, st, cx, sx] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
      const points = mesh.points.map(([x, y, z]) => {
        const side = ct * x + st * z, depth = ct * z - st * x;
        return [side, cx * y - sx * depth, sx * y + cx * depth];
      });
      const size = 0.47 * Math.min(width, height);
      const place = ([x, y]) => [width / 2 + size * x, height / 2 - size * y];
      const base = getComputedStyle(canvas).color.match(/\d+/g).slice(0, 3).map(Number);
      const paint = (colour, light) => `rgb(${colour.map((c) => Math.round(c * light)).join(" ")})`;
      if (!mesh.faces.length) {
        points.forEach((point, i) => {
          context.fillStyle = paint(mesh.colours[i] || base, 0.7 + 0.3 * point[2]);
          const [x, y] = place(point);
          context.fillRect(x - 1, y - 1, 2, 2);
        });
        return;
      }
      const depth = (face) => face.reduce((sum, i) => sum + points[i][2], 0);
      for (const face of [...mesh.faces].sort((a, b) => depth(a) - depth(b))) {
        const [a, b, c] = face.map((i) => points[i]);
        const [u, v] = [b, c].map((p) => p.map((value, i) => value - a[i]));
        const normal = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
        const light = 0.45 + 0.55 * Math.abs(normal[2]) / (Math.hypot(...normal) || 1);
        const colour = mesh.colours.length
          ? [0, 1, 2].map((k) => face.reduce((sum, i) => sum + mesh.colours[i][k], 0) / 3) : base;
        context.fillStyle = context.strokeStyle = paint(colour, light);
        context.beginPath();
        for (const point of [a, b, c]) context.lineTo(...place(point));
        context.closePath();
        context.fill();
        context.stroke();
      }
    }

    canvas.addEventListener("pointerdown", (event) => {
      held = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!held) return;
      turn += (event.clientX - held[0]) / 120;
      tilt += (event.clientY - held[1]) / 120;
      held = [event.clientX, event.clientY];
      draw();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] };
      if (!(event.key in steps)) return;
      event.preventDefault();
      turn += steps[event.key][0];
      tilt += steps[event.key][1];
      draw();
    });
    new ResizeObserver(draw).observe(canvas);
  }

  for (const canvas of document.querySelectorAll("canvas.mesh")) {
    view(canvas, JSON.parse(canvas.nextElementSibling.textContent));
  }
})();
