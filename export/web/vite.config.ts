import { defaultClientConditions, defineConfig } from "vite";

export default defineConfig({
  base: "./",
  // The runtime's wasm and its loader are files of their own: threads start the loader again, not the whole page.
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", ...defaultClientConditions] },
  worker: { format: "es" },
  build: {
    outDir: "../../ssql/page", // beside ssql/demo.py, which serves it
    emptyOutDir: true,
    target: "es2023",
    assetsInlineLimit: 0, // the server's content security policy allows no data: scripts
    reportCompressedSize: false,
  },
});
