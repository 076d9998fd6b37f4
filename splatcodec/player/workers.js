// The player's two Workers. Nothing else says where they are, so that a bundle can bring its own (export-html does).

/** Fetches and decodes. */
export const startLoader = () => new Worker(new URL("./loader.js", import.meta.url), { type: "module" });

/** Sorts by depth. */
export const startSorter = () => new Worker(new URL("./sorter.js", import.meta.url), { type: "module" });
