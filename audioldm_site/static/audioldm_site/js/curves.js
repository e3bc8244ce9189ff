/* Several curves on one axis. */

/**
 * Curves with steps of their own on one axis: all steps that occur, then a column a curve, null where it says nothing.
 * @param {[number[], (number | null)[]][]} curves steps and values of each
 * @returns {any[]}
 */
export function joined(curves) {
  const steps = [...new Set(curves.flatMap(([steps]) => steps))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  const columns = curves.map(([own, values]) => {
    /** @type {(number | null)[]} */
    const column = new Array(steps.length).fill(null);
    own.forEach((step, index) => (column[/** @type {number} */ (place.get(step))] = values[index] ?? null));
    return column;
  });
  return [steps, ...columns];
}
