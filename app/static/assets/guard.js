// An exception of one part of the page stays in that part: the console is told, and all the others go on. Pure.

/** The same part; what a function of it throws is reported, and that call gives undefined. */
export function guarded(part) {
  for (const [name, call] of Object.entries(part)) {
    if (typeof call !== "function") continue;
    part[name] = (...given) => {
      try {
        return call(...given);
      } catch (error) {
        return void reportError(error);
      }
    };
  }
  return part;
}
