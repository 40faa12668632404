// An exception of one part of the page stays in that part: the console is told, and all the others go on.
// Must never hide one, nor take one for something else.

/** The same part; what one of its functions throws is reported, and that call gives undefined. */
export function guarded(part) {
  const made = Object.create(part);
  for (const [name, call] of Object.entries(part)) {
    if (typeof call !== "function") continue;
    made[name] = (...given) => {
      try {
        return call(...given);
      } catch (error) {
        reportError(error);
        return undefined;
      }
    };
  }
  return made;
}
